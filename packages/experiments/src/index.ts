/** Experiments: what joins the phases. They tell of what happens by events and know no terminal. */
export {
  type CachePlan,
  PLAN_SETTINGS,
  type PlanEvents,
  type PlanSettings,
  planCache,
} from './cache-plan/plan-cache.ts';
export type { TriedPolicy } from './cache-plan/policies.ts';
export { lossTerms } from './run-page/loss-terms.ts';
export { RUN_PAGE_FILE } from './run-page/run-page.ts';
export { carryOutSweep, type SweepOutcome } from './sweep/carry-out-sweep.ts';
export { checkSweep } from './sweep/check-sweep.ts';
export { shareInputs } from './sweep/shared-inputs.ts';
export type { MeasurementEvents, RunPlace, SweepEvents, SweepWork } from './sweep/sweep-events.ts';
export { type RunFigures, readSweepFigures, type SweepFigures } from './sweep/sweep-figures.ts';
export { inTurn } from './sweep/sweep-folder.ts';
export { readSweep, type SweepPlan } from './sweep/sweep-plan.ts';
export { REPORT_FILES, writeSweepReport } from './sweep/sweep-report.ts';
export { SWEEP_SETTINGS } from './sweep/sweep-settings.ts';
export { tabulateSweep } from './sweep/sweep-table.ts';
export type { TemperatureChoice } from './temperature/choice.ts';
export { planTuning, TUNING_SETTINGS, type TuningSettings } from './temperature/plan-tuning.ts';
export { explainChoice, TEMPERATURE_FILES, tabulateTemperatures } from './temperature/report.ts';
export { type Tuning, tuneTemperature } from './temperature/tune-temperature.ts';
export { openEvaluator } from './training/held-out-evaluator.ts';
export { trainWatched, type WatchedEvents } from './training/train-watched.ts';
