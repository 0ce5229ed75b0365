import { isStillhouseError } from '@stillhouse/errors';

/** Why tests on the device of an engine that `open` opens cannot run here, or false where they can. */
export async function findDeviceObstacle(
  open: () => Promise<{ readonly close: () => Promise<void> }>,
): Promise<string | false> {
  try {
    await (await open()).close();
    return false;
  } catch (error) {
    if (!isStillhouseError(error, 'DEVICE_UNAVAILABLE')) throw error;
    return error.report.problem;
  }
}
