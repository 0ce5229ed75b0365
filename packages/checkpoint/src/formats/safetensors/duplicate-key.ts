/**
 * The first key that one object of a JSON text holds twice; `JSON.parse` would silently keep the last.
 * @param text valid JSON
 */
export function findDuplicateKey(text: string): string | undefined {
  // One set of keys for each open object, `undefined` for an array.
  const open: (Set<string> | undefined)[] = [];
  for (let at = 0; at < text.length; at++) {
    const character = text[at];
    if (character === '{') open.push(new Set());
    else if (character === '[') open.push(undefined);
    else if (character === '}' || character === ']') open.pop();
    if (character !== '"') continue;
    const start = at;
    at = closingQuote(text, start);
    const keys = open.at(-1);
    if (keys === undefined || text[skipWhiteSpace(text, at + 1)] !== ':') continue;
    const key = JSON.parse(text.slice(start, at + 1)) as string;
    if (keys.has(key)) return key;
    keys.add(key);
  }
  return undefined;
}

function closingQuote(text: string, start: number): number {
  let at = start + 1;
  while (text[at] !== '"') at += text[at] === '\\' ? 2 : 1;
  return at;
}

function skipWhiteSpace(text: string, start: number): number {
  let at = start;
  while (text[at] === ' ' || text[at] === '\n' || text[at] === '\r' || text[at] === '\t') at++;
  return at;
}
