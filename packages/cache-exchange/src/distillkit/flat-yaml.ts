export type YamlScalar = number | boolean | string;
/** What such a file holds: scalars, lists of scalars, lists of mappings of scalars. Null counts as absent. */
export type YamlValue = YamlScalar | readonly YamlValue[] | { readonly [key: string]: YamlScalar };

const SCALAR = /^(?:"([^"\\]*)"|'([^']*)'|([\w.+-]+))$/;

/**
 * Reads the little of YAML that small configuration files use: `key: value` at the margin, lists as `[a, b]` or as
 * lines with a dash, and in such a list mappings with one scalar a line.
 * @param fail told the line, from 1, of whatever is more than that
 */
export function parseFlatYaml(
  text: string,
  fail: (line: number, problem: string) => never,
): Readonly<Record<string, YamlValue>> {
  const result: Record<string, YamlValue> = {};
  let list: (YamlScalar | Record<string, YamlScalar>)[] | undefined;
  let mapping: Record<string, YamlScalar> | undefined;
  for (const [index, raw] of text.split(/\r?\n/).entries()) {
    const line = raw.replace(/(^|\s)#.*$/, '').trimEnd();
    if (line.trim() === '' || line === '---') continue;
    const scalar = (word: string): YamlScalar | undefined => {
      const found = SCALAR.exec(word);
      if (found === null) return fail(index + 1, `${word} cannot be read`);
      const quoted = found[1] ?? found[2];
      return quoted ?? plainScalar(found[3]!);
    };
    const entry = (part: string): readonly [string, string] => {
      const found = /^([A-Za-z_]\w*):(?:\s+(.*))?$/.exec(part);
      return found === null ? fail(index + 1, 'there is no `key: value`') : [found[1]!, (found[2] ?? '').trim()];
    };
    const put = (into: Record<string, YamlScalar>, part: string) => {
      const [key, word] = entry(part);
      if (Object.hasOwn(into, key)) fail(index + 1, `${key} is there twice`);
      const value = word === '' ? fail(index + 1, `${key} has no value`) : scalar(word);
      if (value !== undefined) into[key] = value;
    };
    const item = /^\s*-\s+(.*)$/.exec(line)?.[1];
    if (item !== undefined) {
      if (list === undefined) fail(index + 1, 'an item of no list');
      mapping = undefined;
      if (/^[A-Za-z_]\w*:/.test(item)) {
        mapping = {};
        put(mapping, item);
        list!.push(mapping);
      } else {
        list!.push(scalar(item) ?? fail(index + 1, 'an item is null'));
      }
    } else if (/^\s/.test(line)) {
      if (mapping === undefined) fail(index + 1, 'the indented line belongs to nothing');
      put(mapping!, line.trim());
    } else {
      const [key, word] = entry(line);
      if (Object.hasOwn(result, key)) fail(index + 1, `${key} is there twice`);
      list = undefined;
      mapping = undefined;
      const inline = /^\[(.*)\]$/.exec(word)?.[1];
      if (word === '') {
        list = [];
        result[key] = list;
      } else if (inline !== undefined) {
        const words = inline.trim() === '' ? [] : inline.split(',');
        result[key] = words.map((one) => scalar(one.trim()) ?? fail(index + 1, 'an item is null'));
      } else {
        const value = scalar(word);
        if (value !== undefined) result[key] = value;
      }
    }
  }
  return result;
}

function plainScalar(word: string): YamlScalar | undefined {
  if (word === 'null' || word === '~') return undefined;
  if (word === 'true' || word === 'false') return word === 'true';
  return /^[+-]?\d+(\.\d+)?$/.test(word) ? Number(word) : word;
}
