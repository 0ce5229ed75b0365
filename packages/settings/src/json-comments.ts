/** A string, a line comment, a block comment, or a comma before a closing bracket; whichever begins first is taken whole. */
const TOKENS = /"(?:[^"\\]|\\.)*"|\/\/[^\n]*|\/\*[\s\S]*?\*\/|,(?=(?:\s|\/\/[^\n]*\n|\/\*[\s\S]*?\*\/)*[}\]])/g;

/**
 * JSON with comments as plain JSON: `//` to the end of the line, slash-star to star-slash, and a comma behind the last
 * entry become spaces, so that places in messages stay right. What stands in strings stays.
 */
export function blankComments(text: string): string {
  return text.replace(TOKENS, (token) => (token.startsWith('"') ? token : token.replace(/[^\n]/g, ' ')));
}
