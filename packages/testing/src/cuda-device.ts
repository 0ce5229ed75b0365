import { isStillhouseError } from '@stillhouse/errors';
import { openEngine } from '@stillhouse/runtime';

/** Why tests on a CUDA device cannot run here, or false where they can. */
export async function findCudaObstacle(): Promise<string | false> {
  try {
    await (await openEngine({ device: 'cuda', threads: 1 })).close();
    return false;
  } catch (error) {
    if (!isStillhouseError(error, 'DEVICE_UNAVAILABLE')) throw error;
    return error.report.problem;
  }
}
