/** Phase 1: rows are scored with a teacher, once, and what a student needs is written to a teacher cache. */
export { type BuildPlan, planBuild } from './build-plan.ts';
export type { BuildProgress } from './build-progress.ts';
export { BUILD_SETTINGS, type BuildSettings, type LabelWord } from './build-settings.ts';
export { type BuildEvents, type BuildResult, type BuildStart, buildTeacherCache } from './cache-build.ts';
export { type ExtendEvents, type ExtendResult, type ExtendStart, extendTeacherCache } from './cache-extend.ts';
export { type RepairEvents, type RepairResult, repairTeacherCache } from './cache-repair.ts';
export { EXTEND_SETTINGS, type ExtendSettings } from './extend-settings.ts';
export { findPartition, parsePartition } from './partition-setting.ts';
export { joinStates, type Pilot, type PilotOptions, scorePilot } from './pilot.ts';
export { REPAIR_SETTINGS, type RepairSettings } from './repair-settings.ts';
export {
  createRowScorer,
  type LayerScales,
  type RowScorer,
  type ScoringOptions,
  type ScoringStep,
} from './row-scorer.ts';
