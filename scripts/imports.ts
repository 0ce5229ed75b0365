/**
 * Finds what a TypeScript file imports. Comments and the insides of strings are blanked first, so prose is no import.
 */

export interface Import {
  /** What stands between the quotes; undefined if it is computed. */
  readonly specifier: string | undefined;
  readonly line: number;
  /** `url` is `new URL('./file', import.meta.url)`: a file by its place, such as a worker. */
  readonly kind: 'static' | 'dynamic' | 'url';
}

export interface ScannedFile {
  readonly imports: readonly Import[];
  /** Every string literal without substitutions, imports included. */
  readonly strings: ReadonlySet<string>;
}

const patterns: readonly { readonly kind: Import['kind']; readonly pattern: RegExp }[] = [
  // import x, { y } from '...'; import type ... from '...'; export * from '...'
  { kind: 'static', pattern: /\b(?:import|export)\b(?!\s*[(.=])[^;'"`()=]*?\bfrom\s*(?=['"`])/g },
  // import '...';
  { kind: 'static', pattern: /\bimport\s*(?=['"])/g },
  // import('...'), in code and in types; require('...'), require.resolve('...'), import.meta.resolve('...')
  { kind: 'dynamic', pattern: /(?<![.\w$])(?:import|require(?:\.resolve)?|import\.meta\.resolve)\s*\(\s*/g },
  { kind: 'url', pattern: /\bnew\s+URL\s*\(\s*(?=['"][^'"]*['"]\s*,\s*import\.meta\.url)/g },
];

export function scanImports(source: string): ScannedFile {
  const { code, strings } = blank(source);
  const imports: Import[] = [];
  for (const { kind, pattern } of patterns) {
    for (const match of code.matchAll(pattern)) {
      const specifier = strings.get(match.index + match[0].length);
      imports.push({ specifier, line: code.slice(0, match.index).split('\n').length, kind });
    }
  }
  return { imports: imports.sort((a, b) => a.line - b.line), strings: new Set(strings.values()) };
}

/** The code with comments and the insides of strings as spaces, and every plain string by the place of its quote. */
function blank(source: string): { readonly code: string; readonly strings: ReadonlyMap<number, string> } {
  const code = source.split('');
  const strings = new Map<number, string>();
  /** For each open `${`, the depth of braces at which it closes. */
  const substitutions: number[] = [];
  let depth = 0;
  let at = 0;

  const erase = (from: number, to: number) => {
    for (let i = from; i < to; i++) if (code[i] !== '\n') code[i] = ' ';
  };
  /** Skips the text of a template from `from`, to behind its end or behind the `${` that interrupts it. */
  const skipTemplate = (from: number): number => {
    let i = from;
    while (i < source.length && source[i] !== '`' && !(source[i] === '$' && source[i + 1] === '{')) {
      i += source[i] === '\\' ? 2 : 1;
    }
    erase(from, Math.min(i, source.length));
    if (source[i] !== '$') return i + 1;
    substitutions.push(depth);
    depth += 1;
    return i + 2;
  };

  while (at < source.length) {
    const char = source[at]!;
    const two = source.slice(at, at + 2);
    if (two === '//' || two === '/*') {
      const close = two === '//' ? source.indexOf('\n', at) : source.indexOf('*/', at + 2);
      const end = close === -1 ? source.length : close + (two === '//' ? 0 : 2);
      erase(at, end);
      at = end;
    } else if (char === "'" || char === '"') {
      const end = findClose(source, at + 1, char);
      strings.set(at, source.slice(at + 1, end));
      erase(at + 1, end);
      at = end + 1;
    } else if (char === '`') {
      const start = at;
      at = skipTemplate(at + 1);
      if (source[at - 1] === '`') strings.set(start, source.slice(start + 1, at - 1));
    } else if (char === '/' && startsRegularExpression(code, at)) {
      const end = findClose(source, at + 1, '/');
      erase(at + 1, end);
      at = end + 1;
    } else if (char === '}' && substitutions.at(-1) === depth - 1) {
      substitutions.pop();
      depth -= 1;
      at = skipTemplate(at + 1);
    } else {
      if (char === '{') depth += 1;
      if (char === '}') depth -= 1;
      at += 1;
    }
  }
  return { code: code.join(''), strings };
}

/** The place of the closing quote or slash, not fooled by escapes or, in a regular expression, by a class. */
function findClose(source: string, from: number, close: string): number {
  let inClass = false;
  for (let i = from; i < source.length && source[i] !== '\n'; i++) {
    if (source[i] === '\\') i += 1;
    else if (close === '/' && source[i] === '[') inClass = true;
    else if (close === '/' && source[i] === ']') inClass = false;
    else if (source[i] === close && !inClass) return i;
  }
  return source.length;
}

/** Whether the slash at `at` can only begin a regular expression: what stands before it is no value. */
function startsRegularExpression(code: readonly string[], at: number): boolean {
  const before = code
    .slice(Math.max(0, at - 200), at)
    .join('')
    .trimEnd();
  if (before === '' || /[([{,;:=!&|?+\-*%~^<>}]$/.test(before)) return true;
  return /(?:^|[^\w$.])(?:return|typeof|case|in|of|do|else|void|delete|await|yield)$/.test(before);
}
