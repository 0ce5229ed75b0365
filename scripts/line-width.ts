/** Code and prose wrap at so many columns. */
export const MOST_COLUMNS = 120;

export interface WideLine {
  /** From 1. */
  readonly line: number;
  readonly columns: number;
}

/** What of a line cannot be broken: addresses, targets of links, regular expressions, and words of 60 columns. */
const UNBREAKABLE = /\w+:\/\/[^\s'"`)>]+|(?<=\]\()[^)\s]+(?=\))|(?<=^\s*|[(:,] )\/(?:\\.|[^\\/])+\/[gimsu]*|\S{60,}/g;

/** Titles are one line: headings, rows of tables, and the names of tests. */
const MARKDOWN_TITLE = /^#|^\s*\|/;
const TEST_TITLE = /^\s*(?:test|describe)\(/;

/**
 * The lines of a file that are too wide without what cannot be broken.
 * @param path tells Markdown, by `.md`
 */
export function findWideLines(path: string, text: string): readonly WideLine[] {
  const isMarkdown = path.endsWith('.md');
  let isFenced = false;
  return text.split(/\r?\n/).flatMap((line, i) => {
    if (isMarkdown && /^\s*(```|~~~)/.test(line)) isFenced = !isFenced;
    if (isMarkdown ? !isFenced && MARKDOWN_TITLE.test(line) : TEST_TITLE.test(line)) return [];
    if (countColumns(line.replace(UNBREAKABLE, '')) <= MOST_COLUMNS) return [];
    return [{ line: i + 1, columns: countColumns(line) }];
  });
}

const countColumns = (line: string) => [...line].length;
