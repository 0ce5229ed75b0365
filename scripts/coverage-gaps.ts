// Lists behind the sums of `npm run coverage` the files of which less than 80 % was reached.
import { relative, sep } from 'node:path';
import type { Reporter } from 'vitest/node';

const leastPercent = 80;

type Kind = 'lines' | 'branches';

/** What this needs of istanbul's coverage map. */
interface CoverageMap {
  readonly files: () => readonly string[];
  readonly fileCoverageFor: (file: string) => {
    readonly toSummary: () => { readonly data: Readonly<Record<Kind, { readonly pct: number }>> };
  };
}

export const coverageGaps: Reporter = {
  onCoverage(coverage) {
    const map = coverage as CoverageMap;
    const gaps = map.files().flatMap((file) => {
      const { lines, branches } = map.fileCoverageFor(file).toSummary().data;
      if (lines.pct >= leastPercent && branches.pct >= leastPercent) return [];
      const path = relative(process.cwd(), file).split(sep).join('/');
      return [`${path}: lines ${lines.pct} %, branches ${branches.pct} %`];
    });
    console.log(`below ${leastPercent} %: ${gaps.length} of ${map.files().length} files`);
    for (const gap of gaps.sort()) console.log(gap);
  },
};
