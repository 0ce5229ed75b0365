import { HubApiError } from '@huggingface/hub';
import { StillhouseError } from '@stillhouse/errors';
import { createPatience, PassingFault, type TransferPolicy } from '../transfer/transfer-policy.ts';
import { explainStatus, isPassingStatus } from './http-status.ts';

export const fetchUntil =
  (signal: AbortSignal): typeof fetch =>
  (input, init) =>
    fetch(input, { ...init, signal: init?.signal ? AbortSignal.any([init.signal, signal]) : signal });

/** For one request of many that make a commit: it is tried again alone, what went before it stands. */
export const fetchPatiently =
  (where: string, signal: AbortSignal, policy: TransferPolicy): typeof fetch =>
  async (input, init) => {
    const patience = createPatience(where, policy, signal);
    for (;;) {
      try {
        const response = await fetchUntil(signal)(input, init);
        if (!isPassingStatus(response.status)) return response;
        await response.body?.cancel();
        throw explainStatus(where, response.status, response.headers.get('retry-after'));
      } catch (error) {
        signal.throwIfAborted();
        await patience.wait(
          error instanceof TypeError ? new PassingFault('the hub cannot be reached', { cause: error }) : error,
        );
      }
    }
  };

/**
 * Asks the hub for something of a repository.
 * @throws StillhouseError or PassingFault in place of what its client throws
 */
export async function attemptAtHub<T>(where: string, key: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    throw explainHubFailure(where, key, error);
  }
}

function explainHubFailure(where: string, key: string, error: unknown): unknown {
  if (error instanceof StillhouseError || error instanceof PassingFault) return error;
  if (!(error instanceof HubApiError)) return new PassingFault('the hub cannot be reached', { cause: error });
  const { statusCode, data } = error;
  const message = String((data as { readonly error?: unknown } | undefined)?.error ?? '');
  if (statusCode === 404) {
    return new StillhouseError({
      code: 'REMOTE_NOT_FOUND',
      where,
      problem: 'there is no such repository or revision, or the token may not see it',
      remedy: 'Create the data set repository first, or check HF_TOKEN',
    });
  }
  // Another push came in between; the same commit on top of it is as good.
  if (statusCode === 409 || statusCode === 412) return new PassingFault(`the hub answered ${statusCode} ${message}`);
  return explainStatus(`${where}/${key}`, statusCode);
}
