import { HELD_OUT_FILE, type HeldOutMetrics } from './held-out.ts';
import { METRICS_FILE, openStepLog, type StepMetrics } from './metrics.ts';
import { openTensorboardLog } from './tensorboard-log.ts';

/** The files of a run that grow by a line a step or an evaluation; one of each for all stages. */
export interface RunLog {
  appendStep(line: StepMetrics): Promise<void>;
  appendHeldOut(line: HeldOutMetrics): Promise<void>;
  /** Step of the newest evaluation. */
  readonly newestHeldOut: number | undefined;
  close(): Promise<void>;
}

export interface RunLogOptions {
  /** Lines beyond this step are from steps that were not saved, and go. */
  readonly lastStep: number;
  readonly evaluates: boolean;
  readonly tensorboard: boolean;
}

export async function openRunLog(out: string, options: RunLogOptions): Promise<RunLog> {
  const { lastStep } = options;
  const steps = await openStepLog<StepMetrics>(out, METRICS_FILE, lastStep);
  const heldOut = options.evaluates ? await openStepLog<HeldOutMetrics>(out, HELD_OUT_FILE, lastStep) : undefined;
  // After the logs: what they have and it lacks is written to it first.
  const tensorboard = options.tensorboard ? await openTensorboardLog(out, lastStep) : undefined;
  return {
    appendStep: async (line) => {
      await steps.append(line);
      await tensorboard?.append('train', line);
    },
    appendHeldOut: async (line) => {
      await heldOut!.append(line);
      await tensorboard?.append('held-out', line);
    },
    get newestHeldOut() {
      return heldOut?.newest;
    },
    close: async () => {
      await steps.close();
      await heldOut?.close();
      await tensorboard?.close();
    },
  };
}
