/**
 * Reports: what a page says as plain data, the page as one HTML file with charts, and quantities as people write them.
 */
export type {
  Bar,
  BarChart,
  ChartPoint,
  Figures,
  LineChart,
  LineSeries,
  Paragraph,
  PointChart,
  Report,
  ReportBlock,
  ReportSection,
  Table,
  TableCell,
} from './content.ts';
export { printBytes, printCount, printDuration, printShare, printSignificant } from './quantities.ts';
export { writeReport } from './report.ts';
