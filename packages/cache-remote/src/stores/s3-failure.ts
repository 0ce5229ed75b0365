import { StillhouseError } from '@stillhouse/errors';
import { explainCause } from '../transfer/redact.ts';
import { PassingFault } from '../transfer/transfer-policy.ts';
import { explainStatus, isPassingStatus } from './http-status.ts';

interface SdkError {
  readonly name: string;
  readonly $metadata?: { readonly httpStatusCode?: number };
  readonly $response?: { readonly headers?: Readonly<Record<string, string>> };
}

export const statusOf = (error: unknown): number | undefined => (error as SdkError).$metadata?.httpStatusCode;

/** Answers with a status of 4xx that ask to come again. */
const PASSING_NAMES = new Set([
  'SlowDown',
  'RequestTimeout',
  'Throttling',
  'ThrottlingException',
  'RequestTimeTooSkewed',
]);

/** What a failure of the AWS SDK means. */
export function explainS3Failure(where: string, error: unknown): unknown {
  if (error instanceof StillhouseError || error instanceof PassingFault) return error;
  const { name } = error as SdkError;
  if (name === 'AbortError') return error;
  if (name === 'CredentialsProviderError' || name === 'TokenProviderError') {
    return new StillhouseError({
      code: 'REMOTE_CREDENTIALS_MISSING',
      where,
      problem: `there are no credentials for S3 (${explainCause(error)})`,
      remedy: 'Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run `aws configure`',
    });
  }
  const status = statusOf(error);
  if (name === 'NoSuchBucket') {
    return new StillhouseError({
      code: 'REMOTE_NOT_FOUND',
      where,
      problem: 'there is no such bucket',
      remedy: 'Create it, or check its name and AWS_ENDPOINT_URL',
    });
  }
  if (PASSING_NAMES.has(name)) return new PassingFault(`the storage answered ${name}`);
  // Without a status no answer came: the connection failed. An answer of 2xx that cannot be read was cut off.
  if (status === undefined || status < 300 || isPassingStatus(status)) {
    return new PassingFault(status === undefined ? 'the storage cannot be reached' : `the storage answered ${status}`, {
      cause: error,
    });
  }
  if (status === 401 || status === 403) return explainStatus(where, status);
  return new StillhouseError({
    code: 'REMOTE_REFUSED',
    where,
    problem: `the storage answered ${status}: ${explainCause(error)}`,
    remedy: 'Check the location',
  });
}
