import { StillhouseError } from '@stillhouse/errors';

/** How a value goes from its start to its end over a run. */
export type ScheduleShape = 'constant' | 'linear' | 'cosine';

export interface LossSchedule {
  readonly schedule: ScheduleShape;
  readonly temperature: number;
  /** At the last step; left out: `temperature` throughout. */
  readonly temperatureEnd: number | undefined;
  readonly alpha: number;
  readonly alphaEnd: number | undefined;
}

/**
 * T and alpha at a step, counted from 1: their first values at step 1 and their last at step `steps`, between them by
 * progress x = (step - 1) / (steps - 1) (`linear`) or ½ (1 - cos πx) (`cosine`).
 */
export function lossScalarsAt(
  step: number,
  steps: number,
  { schedule, temperature, temperatureEnd, alpha, alphaEnd }: LossSchedule,
): { readonly temperature: number; readonly alpha: number } {
  if (schedule === 'constant') return { temperature, alpha };
  const x = steps <= 1 ? 0 : (step - 1) / (steps - 1);
  const share = schedule === 'linear' ? x : 0.5 * (1 - Math.cos(Math.PI * x));
  const between = (start: number, end = start) => start * (1 - share) + end * share;
  return { temperature: between(temperature, temperatureEnd), alpha: between(alpha, alphaEnd) };
}

/** Whether T takes more than one value. */
export function changesTemperature({ schedule, temperature, temperatureEnd }: LossSchedule): boolean {
  return schedule !== 'constant' && temperatureEnd !== undefined && temperatureEnd !== temperature;
}

/**
 * An end without a way to it, or a way without an end, is a mistake.
 * @throws StillhouseError SETTING_UNUSED
 */
export function checkLossSchedule({ schedule, temperatureEnd, alphaEnd }: LossSchedule): void {
  const refuse = (where: string, problem: string, remedy: string): never => {
    throw new StillhouseError({ code: 'SETTING_UNUSED', where, problem, remedy });
  };
  if (schedule === 'constant') {
    const remedy = 'Give --schedule linear or --schedule cosine, or leave it out';
    if (temperatureEnd !== undefined) refuse('--temperature-end', 'T does not change on a constant schedule', remedy);
    if (alphaEnd !== undefined) refuse('--alpha-end', 'alpha does not change on a constant schedule', remedy);
  } else if (temperatureEnd === undefined && alphaEnd === undefined) {
    refuse(
      `--schedule ${schedule}`,
      'neither T nor alpha has an end to go to',
      'Give --temperature-end or --alpha-end, or leave it out',
    );
  }
}
