/** Phase 2: trains students from a teacher cache. Never sees a teacher. */
export { type AdamWSettings, createAdamW } from './adamw.ts';
export { type CacheShare, parseCaches } from './cache-mixture.ts';
export { countSteps, type DataOrder, type DataPosition, openDataOrder } from './data-order.ts';
export { type DryRun, type MemoryAdvice, planTraining } from './dry-run.ts';
export {
  HELD_OUT_FILE,
  type HeldOutEvaluator,
  type HeldOutFigures,
  type HeldOutMetrics,
  type HeldOutPlan,
  resolveHeldOut,
} from './held-out.ts';
export { INIT_SETTINGS, type InitSettings, initStudent, type NewStudent } from './init-student.ts';
export { learningRateAt } from './learning-rate.ts';
export { METRICS_FILE, readStepLog, type StepMetrics } from './metrics.ts';
export { createMicroBatchRunner, type LossSums, type MicroBatch } from './micro-batch.ts';
export { resolveObjective } from './objective-from-settings.ts';
export type { Parameter, ParameterStore } from './parameters.ts';
export { PROJECTION_NAME, projectionName } from './projections.ts';
export { RECIPE_FILE } from './recipe.ts';
export { resolveStages, type Stage, type StagedSettings } from './stage-settings.ts';
export { type Batching, groupByLength, measureColumnCost } from './step-layout.ts';
export { createStudent, type StepResult, type Student, type StudentOptions } from './student.ts';
export type { StageSummary, TrainingEvents, TrainingPlan } from './training-events.ts';
export { checkTraining, type SharedInputs, type TrainingCheck } from './training-inputs.ts';
export { type TrainingResult, trainStudent } from './training-run.ts';
export { SETTINGS_FREE_ON_RESUME, TRAINING_SETTINGS, type TrainingSettings } from './training-settings.ts';
export type { CacheUse } from './training-sources.ts';
