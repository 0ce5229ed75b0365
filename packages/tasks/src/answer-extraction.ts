/** Final answers of worked solutions, as GSM8K scores them (Cobbe et al. 2021): the number after `####`. */

/**
 * A number as people write it: sign, thousands separators, decimals, a fraction such as 3/4. A sign counts only where
 * no operand stands before it, so that `32-5` holds 5 and not -5.
 */
const NUMBER =
  /(?:(?<![\w)\]%$.])[-\u2212]\s?)?\$?(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)?(?:(?<=\d)\/\d+(?![.\d])|\.\d+)?/g;
const MARKER = '####';

/** A text's final answer, normalised, and how it was found. */
export interface FinalAnswer {
  readonly answer: string;
  readonly source: 'marker' | 'last-number';
}

/**
 * The final answer of a worked solution: what follows the last `####` on its line, otherwise the text's last number.
 * Undefined when there is neither.
 */
export function extractFinalAnswer(text: string): FinalAnswer | undefined {
  const marker = text.lastIndexOf(MARKER);
  if (marker >= 0) {
    const line =
      text
        .slice(marker + MARKER.length)
        .trimStart()
        .split('\n', 1)[0] ?? '';
    const answer = normaliseAnswer(line);
    if (answer !== '') return { answer, source: 'marker' };
  }
  const last = findNumbers(text).at(-1);
  return last === undefined ? undefined : { answer: printNumber(last), source: 'last-number' };
}

/**
 * One spelling for one answer. Where the text holds a number, its first one without currency sign, thousands
 * separators, unit, leading zeros and trailing decimal zeros: `$1,234.50 a week` is `1234.5`. Otherwise the text in
 * lower case without surrounding brackets, spaces and full stop: `(B).` is `b`.
 */
export function normaliseAnswer(text: string): string {
  const [first] = findNumbers(text);
  if (first !== undefined) return printNumber(first);
  return text
    .trim()
    .toLowerCase()
    .replace(/^[([{\s]+|[)\]}\s.]+$/g, '')
    .replace(/\s+/g, ' ');
}

/**
 * Whether two final answers say the same: numbers by value, exactly (`0.75` is `3/4`), other text by its normal form.
 */
export function answersMatch(a: string, b: string): boolean {
  const [first, second] = [normaliseAnswer(a), normaliseAnswer(b)];
  if (first === '' || second === '') return false;
  if (first === second) return true;
  const [x, y] = [parseRational(first), parseRational(second)];
  return x !== undefined && y !== undefined && x.numerator * y.denominator === y.numerator * x.denominator;
}

function findNumbers(text: string): readonly string[] {
  return (text.match(NUMBER) ?? []).filter((found) => /\d/.test(found));
}

/** Canonical digits; done on text, so that long numbers keep every digit. */
function printNumber(found: string): string {
  const isNegative = /^[-\u2212]/.test(found);
  const [number = '', divisor] = found.replace(/[^\d./]/g, '').split('/');
  const [whole = '', decimals = ''] = number.split('.');
  const cutWhole = whole.replace(/^0+(?=\d)/, '') || '0';
  const cutDecimals = decimals.replace(/0+$/, '');
  const digits = cutWhole + (cutDecimals === '' ? '' : `.${cutDecimals}`);
  const value = divisor === undefined ? digits : `${digits}/${divisor.replace(/^0+(?=\d)/, '')}`;
  return isNegative && /[1-9]/.test(digits) ? `-${value}` : value;
}

interface Rational {
  readonly numerator: bigint;
  readonly denominator: bigint;
}

function parseRational(normalised: string): Rational | undefined {
  const [, sign = '', whole, decimals = '', divisor = '1'] =
    /^(-?)(\d+)(?:\.(\d+))?(?:\/(\d+))?$/.exec(normalised) ?? [];
  if (whole === undefined || BigInt(divisor) === 0n) return undefined;
  const magnitude = BigInt(whole + decimals);
  return {
    numerator: sign === '-' ? -magnitude : magnitude,
    denominator: 10n ** BigInt(decimals.length) * BigInt(divisor),
  };
}
