import type { MeasurementEvents, RunPlace, SweepEvents } from '@stillhouse/experiments';
import { printCount } from '@stillhouse/report';
import type { CommandContext } from '../command-line/command.ts';
import type { Progress } from './progress.ts';
import { openTrainingDisplay } from './training-display.ts';

/**
 * Shows a sweep on the terminal.
 * @param onBegin told when there is something to save, should the process be interrupted
 */
export function openSweepDisplay(context: CommandContext, onBegin: () => void): SweepEvents {
  const { note } = context;
  return {
    onPartition: ({ setting, source }) => note(`sweep: partition ${setting}, by ${source}`),
    onCheck: (runs) => note(`sweep: checking ${printCount(runs)} runs`),
    onBegin: (own, runs) => {
      if (own < runs) note(`sweep: ${printCount(own)} of ${printCount(runs)} runs are this process's`);
      onBegin();
    },
    onRun: (run) => note(nameRun(run)),
    onRunSkipped: (run, why) =>
      note(`${nameRun(run)}: ${why === 'done' ? 'done before' : 'diverged before, and would again'}`),
    onRunFailed: (run, { message, code }) => note(`${nameRun(run)}: failed, the others go on: ${message} [${code}]`),
    watchTraining: () => openTrainingDisplay(context),
    watchMeasurement: (task) => openMeasurementDisplay(context, task),
  };
}

const nameRun = ({ name, number, runs }: RunPlace) =>
  `sweep: run ${printCount(number)} of ${printCount(runs)}, ${name}`;

function openMeasurementDisplay({ openProgress }: CommandContext, task: string | undefined): MeasurementEvents {
  let progress: Progress | undefined;
  return {
    onProgress: ({ done, total, tokens }) => {
      progress ??= openProgress({ label: `eval ${task}`, unit: task === 'kd' ? 'rows' : 'questions', total });
      progress.update({ done, pace: { tokens } });
    },
    onEnd: () => progress?.stop(),
  };
}
