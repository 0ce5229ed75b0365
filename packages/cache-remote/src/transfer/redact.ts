/** Environment variables whose values are secrets. */
const SECRET_VARIABLES = ['AWS_SECRET_ACCESS_KEY', 'AWS_SESSION_TOKEN', 'AWS_ACCESS_KEY_ID', 'HF_TOKEN'];

const PATTERNS: readonly (readonly [RegExp, string])[] = [
  // user:password@ in an address
  [/([a-z][a-z0-9+.-]*:\/\/)[^\s/@]*@/gi, '$1***@'],
  // A query may be a signature; nothing in one helps a reader.
  [/(https?:\/\/[^\s?#"']+)\?[^\s"']*/gi, '$1?***'],
  [/\b(Bearer|Basic)\s+[^\s"']+/gi, '$1 ***'],
  [/\b(Credential|Signature)=[^\s,&"']+/gi, '$1=***'],
  [/\bhf_[A-Za-z0-9_-]{3,}/g, 'hf_***'],
  [/\b(?:AKIA|ASIA)[A-Z0-9]{12,}/g, '***'],
];

/** Takes out of a text whatever could be a credential. */
export function redact(text: string): string {
  let clean = text;
  for (const name of SECRET_VARIABLES) {
    const secret = process.env[name];
    if (secret !== undefined && secret.length >= 4) clean = clean.replaceAll(secret, '***');
  }
  for (const [pattern, replacement] of PATTERNS) clean = clean.replace(pattern, replacement);
  return clean;
}

const LONGEST_MESSAGE = 300;

/** The messages of an error and of what caused it, on one line, without credentials. */
export function explainCause(error: unknown): string {
  const parts: string[] = [];
  for (let one = error; one instanceof Error && parts.length < 3; one = one.cause) {
    const { code } = one as NodeJS.ErrnoException;
    const message =
      one.message === '' || one.message === 'UnknownError' ? `${one.name}${code ? ` ${code}` : ''}` : one.message;
    if (!parts.includes(message)) parts.push(message);
  }
  const text = redact((parts.length === 0 ? String(error) : parts.join(': ')).replace(/\s+/g, ' '));
  return text.length > LONGEST_MESSAGE ? `${text.slice(0, LONGEST_MESSAGE - 3)}...` : text;
}
