import assert from 'node:assert/strict';
import { resolve } from 'node:path';
import { test } from 'vitest';
import { hasScheme, parseLocation } from '../index.ts';
import { explainCause, redact } from '../transfer/redact.ts';

test('locations: every kind of place, with and without a name', () => {
  const places = [
    ['remote', { kind: 'folder', folder: resolve('remote') }, 'main'],
    ['../a b#x', { kind: 'folder', folder: resolve('../a b') }, 'x'],
    ['file:///mnt/team%20share', { kind: 'folder', folder: '/mnt/team share' }, 'main'],
    ['https://host:8080/caches/', { kind: 'http', url: 'https://host:8080/caches' }, 'main'],
    ['s3://bucket', { kind: 's3', bucket: 'bucket', prefix: '' }, 'main'],
    ['s3://my.bucket-1/a/b/#v2', { kind: 's3', bucket: 'my.bucket-1', prefix: 'a/b' }, 'v2'],
    ['hf://datasets/o/n', { kind: 'hub', repository: 'o/n', revision: 'main', prefix: '' }, 'main'],
    ['hf://datasets/o/n@v1/p/q#x', { kind: 'hub', repository: 'o/n', revision: 'v1', prefix: 'p/q' }, 'x'],
  ] as const;
  for (const [text, place, name] of places) {
    const location = parseLocation(text);
    assert.deepEqual([location.place, location.name], [place, name], text);
  }
  assert.deepEqual(['a/b', 's3://b', 'C:\\x', 'file:///x'].map(hasScheme), [false, true, false, true]);
});

test('locations that are none are refused; credentials in one are not repeated', () => {
  const wrong = [
    '',
    '#x',
    'remote#',
    'remote#../x',
    'remote#a/b',
    's3://',
    's3://Bucket/x',
    's3://bucket/../x',
    's3://bucket/a//b',
    'hf://models/o/n',
    'hf://datasets/o',
    'hf://datasets/o/n/../x',
    'file://host/x?y',
    'https://',
    'https://host/x?X-Amz-Signature=SECRET',
    'https://user:SECRET@host/x',
    's3://AKIA:SECRET@bucket/x',
    'ftp://host/SECRETLESS',
  ];
  for (const text of wrong) {
    assert.throws(
      () => parseLocation(text),
      (error: Error & { code: string }) => {
        assert.equal(error.code, 'REMOTE_LOCATION_INVALID', text);
        assert.ok(!/SECRET(?!LESS)/.test(error.message), error.message);
        return true;
      },
      text,
    );
  }
});

test('messages of others lose whatever could be a credential', (t) => {
  process.env.AWS_SESSION_TOKEN = 'the-session-token';
  t.onTestFinished(() => {
    delete process.env.AWS_SESSION_TOKEN;
  });
  const texts = [
    'GET https://user:pw@host/x failed',
    'at https://b.s3.amazonaws.com/k?X-Amz-Credential=AKIAABCDEFGHIJKLMNOP%2F2026&X-Amz-Signature=abcdef0123',
    'Authorization: Bearer hf_abcdefgh',
    'Authorization: AWS4-HMAC-SHA256 Credential=AKIAABCDEFGHIJKLMNOP/2026/s3, Signature=abcdef0123',
    'token the-session-token is old',
  ];
  for (const text of texts) {
    assert.ok(!/pw@|AKIAABC|abcdef|the-session/.test(redact(text)), redact(text));
  }
  const error = new Error('it failed', { cause: new Error(texts[1], { cause: new Error(texts[4]) }) });
  assert.match(explainCause(error), /^it failed: at https:\/\/b\.s3\.amazonaws\.com\/k\?\*\*\* token \*\*\* is old$/);
});
