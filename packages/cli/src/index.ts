/** The `stillhouse` command. `bin/stillhouse.js` runs it; what it does is in the packages below. */

export { type CachePlan, PLAN_SETTINGS, type PlanEvents, type PlanSettings, planCache } from './cache-plan.ts';
export type { TriedPolicy } from './cache-policies.ts';
export { main } from './main.ts';
