import { type ErrorReport, StillhouseError } from '@stillhouse/errors';
import {
  type CacheDescription,
  type CachedRow,
  type LabelledRow,
  labelPositions,
  type MatrixDtype,
  type OutputMatrixSource,
  type ScoringSettings,
  type TeacherIdentity,
} from '@stillhouse/teacher-cache';
import type { LayerScales, ScoringStep } from '../scoring/row-scorer.ts';
import type { BuildSettings } from '../settings/build-settings.ts';

/** Where labels come from, and who it is. */
export interface Teacher {
  /** What messages call it, such as its folder. */
  readonly where: string;
  readonly vocabulary: {
    /** Ids that it knows, padding included. */
    readonly size: number;
    readonly eosTokenIds: readonly number[];
  };
  /** Most tokens of a row. */
  readonly contextLength: number;
  readonly work: TeacherWork;
  /** What the cache keeps its output matrix as. */
  readonly matrixDtype: MatrixDtype;
  /** A function, for it may take as long as to read all that the teacher is. */
  identify(): Promise<TeacherIdentity>;
  /** @returns undefined where it can give all of these labels, else what is wrong with them */
  can(labels: CacheDescription['labels']): ErrorReport | undefined;
  /**
   * Whether its labels can be numbers at all.
   * @param isKnown it was checked when its cache was begun, and has the digest that it had then
   * @throws StillhouseError WEIGHT_NOT_FINITE
   */
  check(isKnown: boolean): Promise<void>;
  /** The output matrix as the teacher stores it, read as it is written. */
  readOutputMatrix(): OutputMatrixSource;
  open(settings: SessionSettings): Promise<TeacherSession>;
  close(): Promise<void>;
}

/** Multiply-adds of a token in all layers, and of a label position in the readout: what progress counts. */
export interface TeacherWork {
  readonly token: number;
  readonly position: number;
}

export type SessionSettings = Pick<BuildSettings, 'device' | 'threads' | 'batchTokens' | 'positions'>;

/** A teacher ready to score; what it needs is compiled when labels of a kind are first asked for. */
export interface TeacherSession {
  /** Where it is computed and why; null where nothing is. */
  readonly device: string | null;
  /** Whether the teacher's weights stay in memory or are read again for every shard; null without a teacher. */
  readonly weights: 'resident' | 'streamed' | null;
  /** What may change the last bits of a label. */
  readonly settings: ScoringSettings;
  /**
   * The labels of rows that are scored together, a shard's.
   * @throws StillhouseError of `RowScorer.score`
   */
  score(
    rows: readonly CachedRow[],
    labels: CacheDescription['labels'],
    scales: LayerScales,
    onStep?: (step: ScoringStep) => void,
  ): Promise<readonly LabelledRow[]>;
  close(): Promise<void>;
}

/** @throws StillhouseError with what is wrong, where a teacher cannot give these labels */
export function requireLabels(can: Teacher['can'], labels: CacheDescription['labels']): void {
  const refusal = can(labels);
  if (refusal !== undefined) throw new StillhouseError(refusal);
}

/** @param teacher null where no labels are wanted */
export const openTeacherSession = (teacher: Teacher | null, settings: SessionSettings): Promise<TeacherSession> =>
  teacher === null ? openRowSession(settings) : teacher.open(settings);

const openRowSession = async ({ positions }: SessionSettings): Promise<TeacherSession> => ({
  device: null,
  weights: null,
  settings: {},
  score: async (rows) => withoutLabels(rows, positions),
  close: async () => {},
});

export const withoutLabels = (
  rows: readonly CachedRow[],
  positions: BuildSettings['positions'],
): readonly LabelledRow[] => rows.map((row) => ({ row, positions: labelPositions(row.lossMask, positions) }));
