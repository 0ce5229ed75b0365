import type { EvaluationSettings } from '@stillhouse/evaluation';
import type { SharedInputs } from '@stillhouse/student-trainer';
import type { WatchedEvents } from '../training/train-watched.ts';
import type { RunFailure } from './run-folder.ts';

/** One of the runs that a process works on. */
export interface RunPlace {
  readonly name: string;
  /** From 1. */
  readonly number: number;
  /** All that the process works on. */
  readonly runs: number;
}

/** Who follows a sweep is told of these. */
export interface SweepEvents {
  /** The share of the runs is what a cluster's scheduler says. */
  readonly onPartition?: (found: { readonly setting: string; readonly source: string }) => void;
  /** All runs are checked before the first begins. */
  readonly onCheck?: (runs: number) => void;
  /** The sweep is on disk and the work begins: on so many of all runs. */
  readonly onBegin?: (own: number, runs: number) => void;
  readonly onRun?: (run: RunPlace) => void;
  /** A run is passed over: its files are all there, or it has diverged and would again. */
  readonly onRunSkipped?: (run: RunPlace, why: 'done' | 'diverged') => void;
  /** A run has failed; the others go on. */
  readonly onRunFailed?: (run: RunPlace, failure: RunFailure) => void;
  /** A student is about to be trained: who follows that. */
  readonly watchTraining?: () => WatchedEvents;
  /** A student is about to be measured: who follows that. */
  readonly watchMeasurement?: (task: EvaluationSettings['task']) => MeasurementEvents;
}

/** What a measurement tells while it works. */
export interface MeasurementEvents {
  readonly onProgress?: (progress: { readonly done: number; readonly total: number; readonly tokens: number }) => void;
  readonly onEnd?: () => void;
}

/** What the work on a sweep needs beside its runs. */
export interface SweepWork {
  readonly shared: Required<SharedInputs>;
  readonly events: SweepEvents;
  /** Once aborted, the step under way is finished and saved, and nothing more is begun. */
  readonly stopSignal: AbortSignal;
}
