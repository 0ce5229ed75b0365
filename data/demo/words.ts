/** A person of a problem, with the pronoun that later sentences use. */
export interface Person {
  readonly name: string;
  readonly pronoun: 'She' | 'He';
}

const she = (name: string): Person => ({ name, pronoun: 'She' });
const he = (name: string): Person => ({ name, pronoun: 'He' });

export const NAMES: readonly Person[] = [
  ...['Mia', 'Ana', 'Zoe', 'Ella', 'Ruth', 'Nora', 'Lily', 'Emma', 'Iris', 'Sara'].map(she),
  ...['Tom', 'Ben', 'Leo', 'Max', 'Sam', 'Ivan', 'Omar', 'Paul', 'Hugo', 'Jack'].map(he),
];

/** Things that can be counted, bought, given away and put into a container. */
export const ITEMS: readonly string[] = [
  'apples',
  'pears',
  'plums',
  'lemons',
  'eggs',
  'cookies',
  'nuts',
  'rolls',
  'stickers',
  'marbles',
  'pencils',
  'books',
  'cards',
  'shells',
  'coins',
  'beads',
  'stamps',
  'buttons',
  'toys',
  'candles',
];

export const CONTAINERS: readonly string[] = ['boxes', 'bags', 'packs', 'jars', 'baskets'];
