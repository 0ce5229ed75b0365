import type { LineSeries, Report, ReportBlock } from '../content.ts';
import { SERIES_COLOURS, standIn } from './drawing.ts';

/** Every name's colour, in order of first appearance: one kind of run looks the same in every chart of a report. */
export function assignColours(report: Report): ReadonlyMap<string, string> {
  const colours = new Map<string, string>();
  for (const { blocks } of report.sections) {
    for (const block of blocks) {
      for (const name of namesOf(block)) {
        if (!colours.has(name)) colours.set(name, standIn(colours.size % SERIES_COLOURS));
      }
    }
  }
  return colours;
}

function namesOf(block: ReportBlock): readonly string[] {
  switch (block.kind) {
    case 'lines':
      return block.series.map(groupOf);
    case 'bars':
      return block.bars.map(({ name }) => name);
    case 'points':
      return block.points.map(({ group }) => group);
    default:
      return [];
  }
}

/** What a series shares its colour and its entry of the legend with. */
export const groupOf = (series: LineSeries): string => series.group ?? series.name;
