/** Phase 1: rows are scored with a teacher, once, and what a student needs is written to a teacher cache. */
export { type BuildPlan, planBuild } from './build/build-plan.ts';
export type { BuildProgress } from './build/build-progress.ts';
export { type BuildEvents, type BuildResult, type BuildStart, buildTeacherCache } from './build/cache-build.ts';
export { type ExtendEvents, type ExtendResult, type ExtendStart, extendTeacherCache } from './build/cache-extend.ts';
export { type RepairEvents, type RepairResult, repairTeacherCache } from './build/cache-repair.ts';
export { findPartition, parsePartition } from './build/partition-setting.ts';
export { joinStates, type Pilot, type PilotOptions, scorePilot } from './calibrate/pilot.ts';
export { BUILD_SETTINGS, type BuildSettings, type LabelWord } from './settings/build-settings.ts';
export { EXTEND_SETTINGS, type ExtendSettings } from './settings/extend-settings.ts';
export { REPAIR_SETTINGS, type RepairSettings } from './settings/repair-settings.ts';
