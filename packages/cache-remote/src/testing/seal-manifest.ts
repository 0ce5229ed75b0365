import { createHash } from 'node:crypto';

/** JSON with sorted keys and no white space, as FORMAT.md has it. */
function canonical(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(canonical).join(',')}]`;
  if (typeof value !== 'object' || value === null) return JSON.stringify(value);
  const entries = Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1));
  return `{${entries.map(([key, child]) => `${JSON.stringify(key)}:${canonical(child)}`).join(',')}}`;
}

/** The digest that a manifest must have to be believed. */
export function digestOf({ digest: _, ...rest }: { readonly [key: string]: unknown }): string {
  return createHash('sha256').update(canonical(rest)).digest('hex');
}
