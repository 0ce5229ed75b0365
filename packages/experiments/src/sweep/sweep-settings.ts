import { boolean, integer, list, number, type SettingsOf, text } from '@stillhouse/settings';
import { TRAINING_SETTINGS } from '@stillhouse/student-trainer';

const { out: _out, resume: _resume, resumeStep: _resumeStep, ...runSettings } = TRAINING_SETTINGS;

/** The settings of one run; where it is written and whether it goes on is the sweep's business. */
export const RUN_SETTINGS = runSettings;
export type RunSettings = SettingsOf<typeof RUN_SETTINGS>;

/** How the students of a sweep are measured, besides the held-out rows that --eval-cache, --eval-split name. */
export const MEASUREMENT_SETTINGS = {
  questions: text('questions with final answers, as for eval --task exact-match: measures accuracy too', undefined),
  questionsLimit: integer('only the first so many questions', undefined, { min: 1 }),
  maxNewTokens: integer('longest answer to a question in tokens', 512, { min: 1 }),
  evalBatchSize: integer('held-out rows or questions computed together', 8, { min: 1 }),
  pricePerHour: number('price of an hour of the machine: gives the cost of each run', undefined, { min: 0 }),
} as const;
export type MeasurementSettings = SettingsOf<typeof MEASUREMENT_SETTINGS>;

/** Which runs of a sweep a process works on. */
export const SHARE_SETTINGS = {
  only: list(
    'only the runs of these names',
    (value): value is string => typeof value === 'string' && value !== '',
    'names of runs',
    undefined,
  ),
  partition: text(
    'only every n-th run from the i-th, as 2/4, into a folder that all parts share; left out: as the Slurm ' +
      'array or Kubernetes job says; none: all',
    undefined,
  ),
  dryRun: boolean('check all runs and list them, and train none'),
} as const;
export type ShareSettings = SettingsOf<typeof SHARE_SETTINGS>;

/** Every setting of a sweep but the recipe file itself; all are keys of the file and flags. */
export const SWEEP_SETTINGS = {
  out: text('folder for the runs and their report', undefined),
  ...SHARE_SETTINGS,
  ...MEASUREMENT_SETTINGS,
  ...RUN_SETTINGS,
} as const;
export type SweepSettings = SettingsOf<typeof SWEEP_SETTINGS>;
