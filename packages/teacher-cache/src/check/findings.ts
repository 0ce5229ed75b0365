import { isStillhouseError } from '@stillhouse/errors';

export interface VerifyProblem {
  /** Relative to the cache. */
  readonly file: string;
  readonly problem: string;
}

/** More would bury the other files. */
const PROBLEMS_PER_FILE = 5;

/** What an error says, in one line. */
export const explain = (error: unknown) =>
  isStillhouseError(error)
    ? [
        error.report.problem,
        error.report.expected && `expected ${error.report.expected}`,
        error.report.got && `got ${error.report.got}`,
      ]
        .filter((part) => part !== undefined)
        .join(', ')
    : String(error);

/** What is wrong with a cache, by file. */
export function collectFindings() {
  const found = new Map<string, string[]>();
  return {
    add: (file: string, problem: string) => {
      const list = found.get(file) ?? [];
      found.set(file, list);
      list.push(problem);
    },
    list: (): VerifyProblem[] =>
      [...found].flatMap(([file, problems]) => {
        const rest = problems.length - PROBLEMS_PER_FILE;
        const shown = problems.slice(0, PROBLEMS_PER_FILE);
        return (rest > 0 ? [...shown, `and ${rest} more`] : shown).map((problem) => ({ file, problem }));
      }),
  };
}
export type Findings = ReturnType<typeof collectFindings>;
