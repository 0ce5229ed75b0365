import { type FeatureMatch, featureName } from '@stillhouse/objectives';
import { seededNormals } from '@stillhouse/seeded-random';

const PREFIX = 'projection.';

/**
 * Name of the learned layer [teacher width, student width] between the states of a match: `projection.weight` for the
 * final states of both, `projection.6:7.weight` for layers.
 */
export function projectionName(match: Pick<FeatureMatch, 'student' | 'teacher'>): string {
  const name = featureName(match);
  return name === 'final:final' ? PROJECTION_NAME : `${PREFIX}${name}.weight`;
}

/** Name of the learned layer between the final states of student and teacher. */
export const PROJECTION_NAME = `${PREFIX}weight`;

export const isProjection = (name: string): boolean => name.startsWith(PREFIX);

/** A parameter between a state of the student and one of the teacher. */
export interface ProjectionSpec {
  readonly name: string;
  readonly teacherHidden: number;
}

export function describeProjections(features: readonly FeatureMatch[] = []): readonly ProjectionSpec[] {
  return features
    .filter(({ hasProjection }) => hasProjection)
    .map((match) => ({ name: projectionName(match), teacherHidden: match.teacherHidden }));
}

/** Streams of random numbers from here on are those of projections. */
const PROJECTION_STREAM = 1_000_003;

/**
 * A new projection [teacherHidden, hidden]: normal with deviation 1/√hidden, so that it keeps the size of what it maps.
 * @param index of the projection among those of the objective
 */
export function initialProjection(
  teacherHidden: number,
  hiddenSize: number,
  seed: number,
  index: number,
): Float32Array<ArrayBuffer> {
  return seededNormals(teacherHidden * hiddenSize, 1 / Math.sqrt(hiddenSize), seed, PROJECTION_STREAM + index);
}
