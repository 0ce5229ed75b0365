/** What a report says, as plain data: no HTML, no colours. */
export interface Report {
  readonly title: string;
  readonly subtitle?: string;
  /** For a page that is written again and again: browsers load it anew after so long. */
  readonly refreshSeconds?: number;
  readonly sections: readonly ReportSection[];
}

/** A part of a page under its own heading. */
export interface ReportSection {
  readonly heading?: string;
  readonly blocks: readonly ReportBlock[];
}

/** What a section is made of. */
export type ReportBlock = Paragraph | Figures | Table | LineChart | BarChart | PointChart;

/** Running text. */
export interface Paragraph {
  readonly kind: 'paragraph';
  readonly text: string;
}

/** A row of headline numbers, already printed with their units. */
export interface Figures {
  readonly kind: 'figures';
  readonly figures: readonly { readonly label: string; readonly value: string; readonly note?: string }[];
}

/** Rows under named columns. */
export interface Table {
  readonly kind: 'table';
  readonly caption?: string;
  /**
   * Headings; a column whose cells are all numbers, printed ones with `± error`, a unit or `(low to high)`, or null, is
   * set to the right.
   */
  readonly columns: readonly string[];
  /** One cell a column. Numbers get up to 4 decimals, alike within a column; null is a dash; text stays as it is. */
  readonly rows: readonly (readonly TableCell[])[];
}

/** One cell; null is what is not known. */
export type TableCell = string | number | null;

/** Quantities over one axis, such as a loss over steps. */
export interface LineChart {
  readonly kind: 'lines';
  readonly title?: string;
  readonly series: readonly LineSeries[];
  readonly xLabel: string;
  readonly yLabel: string;
  /** A logarithmic y axis; points at or below zero are then left out. */
  readonly logY?: boolean;
}

/** One line of a chart. */
export interface LineSeries {
  readonly name: string;
  /**
   * Series of one group share a colour and one entry of the legend: the seeds of one kind of run. Default: the name.
   */
  readonly group?: string;
  /** Points [x, y] by rising x. A point that is not finite is left out, and the chart's note says so. */
  readonly points: readonly (readonly [x: number, y: number])[];
}

/** Values side by side, each with an interval where there is one. */
export interface BarChart {
  readonly kind: 'bars';
  readonly title?: string;
  readonly bars: readonly Bar[];
  readonly valueLabel: string;
  /** A d3 format of the printed values, such as `.1%`; default `.3~g`. */
  readonly format?: string;
}

/** One bar of a chart. */
export interface Bar {
  readonly name: string;
  readonly value: number;
  /** Ends of an interval around the value; both or neither. */
  readonly low?: number;
  readonly high?: number;
}

/** One quantity against another, such as fidelity against size. */
export interface PointChart {
  readonly kind: 'points';
  readonly title?: string;
  readonly points: readonly ChartPoint[];
  readonly xLabel: string;
  readonly yLabel: string;
  /** A logarithmic x axis; points at or below zero are then left out. */
  readonly logX?: boolean;
  /** Joins the points of each group by a line, by rising x. */
  readonly isJoined?: boolean;
}

/** One point of a chart. */
export interface ChartPoint {
  /** Written beside the point while there are few. */
  readonly name?: string;
  /** Points of one group share a colour. */
  readonly group: string;
  readonly x: number;
  readonly y: number;
  /** Ends of an interval around y; both or neither. */
  readonly low?: number;
  readonly high?: number;
}
