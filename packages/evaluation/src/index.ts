/** Evaluation: final answers, question files, intervals, and reports. */
export { answersMatch, extractFinalAnswer, type FinalAnswer, normaliseAnswer } from './answer-extraction.ts';
export { type RateInterval, wilsonInterval } from './interval.ts';
export { type ChatMessage, type Question, type QuestionPrompt, readQuestionFile } from './question-file.ts';
export { renderReport, writeReport } from './report.ts';
export type {
  Bar,
  BarChart,
  Figures,
  LineChart,
  LineSeries,
  Paragraph,
  Report,
  ReportBlock,
  ReportSection,
  Table,
  TableCell,
} from './report-content.ts';
