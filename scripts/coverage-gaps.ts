// Says at the end of `npm run coverage` how much was reached, and the files of which less than 80 % was.
import { relative, sep } from 'node:path';
import type { Reporter } from 'vitest/node';

const leastPercent = 80;

type Kind = 'lines' | 'branches';

/** What this needs of istanbul's coverage map. */
interface CoverageSummary {
  readonly data: Readonly<Record<Kind, { readonly pct: number }>>;
}

interface CoverageMap {
  readonly files: () => readonly string[];
  readonly fileCoverageFor: (file: string) => { readonly toSummary: () => CoverageSummary };
  readonly getCoverageSummary: () => CoverageSummary;
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
    const whole = map.getCoverageSummary().data;
    console.log(`all files: lines ${whole.lines.pct} %, branches ${whole.branches.pct} %`);
    console.log(`below ${leastPercent} %: ${gaps.length} of ${map.files().length} files`);
    for (const gap of gaps.sort()) console.log(gap);
  },
};
