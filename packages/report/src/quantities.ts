const grouped = new Intl.NumberFormat('en-US', { maximumFractionDigits: 0 });

/** 12,345 */
export function printCount(count: number): string {
  return grouped.format(count);
}

/** Bytes in powers of 1024 with three significant digits: 512 B, 1.54 KiB, 467 MiB. */
export function printBytes(sizeBytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let size = sizeBytes;
  let unit = 0;
  while (size >= 1024 && unit + 1 < units.length) {
    size /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? printCount(size) : printSignificant(size, 3)} ${units[unit]}`;
}

/** A number in so many significant digits, without an exponent where it can be read without. */
export function printSignificant(value: number, digits = 4): string {
  const size = Math.abs(value);
  if (!Number.isFinite(value)) return String(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e9)) return value.toExponential(digits - 1);
  return size >= 10 ** digits ? value.toFixed(0) : value.toPrecision(digits);
}

/** 42 s, 3 min 05 s, 2 h 07 min */
export function printDuration(elapsedMs: number): string {
  const seconds = Math.round(elapsedMs / 1000);
  const pad = (part: number) => String(part).padStart(2, '0');
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${pad(seconds % 60)} s`;
  return `${Math.floor(seconds / 3600)} h ${pad(Math.floor((seconds % 3600) / 60))} min`;
}

/** A share of one: 31.4 % */
export const printShare = (share: number): string => `${(100 * share).toFixed(1)} %`;
