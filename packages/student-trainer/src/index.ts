/** Phase 2: trains students from a teacher cache. Never sees a teacher. */

export { type CacheShare, parseCaches } from './data/cache-mixture.ts';
export { type Batching, groupByLength, measureColumnCost } from './data/step-layout.ts';
export type { CacheUse } from './data/training-sources.ts';
export { type DryRun, type MemoryAdvice, planTraining } from './plan/dry-run.ts';
export { checkTraining, type SharedInputs, type TrainingCheck } from './plan/training-inputs.ts';
export type { StageSummary, TrainingEvents, TrainingStart } from './run/training-events.ts';
export { type TrainingResult, trainStudent } from './run/training-run.ts';
export { INIT_SETTINGS, type InitSettings, initStudent, type NewStudent } from './save/init-student.ts';
export { resolveObjective } from './settings/objective-from-settings.ts';
export { RECIPE_FILE } from './settings/recipe.ts';
export { resolveStages, type Stage, type StagedSettings } from './settings/stage-settings.ts';
export { SETTINGS_FREE_ON_RESUME, TRAINING_SETTINGS, type TrainingSettings } from './settings/training-settings.ts';
export type { LossSums, MicroBatch } from './step/micro-batch.ts';
export type { Parameter, ParameterStore } from './step/parameters.ts';
export { createStudent, type StepResult, type Student, type StudentOptions } from './step/student.ts';
export {
  HELD_OUT_FILE,
  type HeldOutEvaluator,
  type HeldOutFigures,
  type HeldOutMetrics,
  type HeldOutPlan,
  resolveHeldOut,
} from './watch/held-out.ts';
export { METRICS_FILE, readStepLog, type StepMetrics } from './watch/metrics.ts';
