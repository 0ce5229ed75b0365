/**
 * The one error type of Stillhouse.
 *
 * A message reads `where: what is wrong; expected x, got y. Do this.` and every kind of failure has a stable
 * code, so that a program can tell failures apart without reading prose.
 */
export interface ErrorReport {
  /** Stable identifier such as `CACHE_DIGEST_MISMATCH`; part of the public contract. */
  readonly code: string;
  /** What was being looked at: a file, a tensor, a flag, a line of data. */
  readonly where: string;
  /** What is wrong with it. */
  readonly problem: string;
  readonly expected?: string;
  readonly got?: string;
  /** What the reader should do now, as a sentence without its full stop. */
  readonly remedy?: string;
  readonly cause?: unknown;
}

export class StillhouseError extends Error {
  override readonly name = 'StillhouseError';
  readonly code: string;
  readonly report: ErrorReport;

  constructor(report: ErrorReport) {
    super(formatReport(report), report.cause === undefined ? undefined : { cause: report.cause });
    this.code = report.code;
    this.report = report;
  }
}

/** Renders `where: problem; expected x, got y. Remedy.` */
export function formatReport(report: ErrorReport): string {
  const parts = [
    report.expected === undefined ? undefined : `expected ${report.expected}`,
    report.got === undefined ? undefined : `got ${report.got}`,
  ].filter((part) => part !== undefined);
  const comparison = parts.length === 0 ? '' : `; ${parts.join(', ')}`;
  const remedy = report.remedy === undefined ? '' : ` ${report.remedy}.`;
  return `${report.where}: ${report.problem}${comparison}.${remedy}`;
}

/** Whether `error` is a {@link StillhouseError}, of the given code if one is named. */
export function isStillhouseError(error: unknown, code?: string): error is StillhouseError {
  return error instanceof StillhouseError && (code === undefined || error.code === code);
}
