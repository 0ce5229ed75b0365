import assert from 'node:assert/strict';
import fc from 'fast-check';
import { test } from 'vitest';
import { blankComments } from './json-comments.ts';

test('comments and trailing commas go, strings and places stay', () => {
  const text = `{ // first
  "a": "// no comment, \\" /* nor this */", /* a block
  of two lines */ "b": [1, 2, // two
  ],
}`;
  assert.deepEqual(JSON.parse(blankComments(text)), { a: '// no comment, " /* nor this */', b: [1, 2] });
  assert.equal(blankComments(text).length, text.length);
  assert.equal(blankComments(text).split('\n').length, text.split('\n').length);
});

test('plain JSON stays as it is', () => {
  fc.assert(
    fc.property(fc.jsonValue(), fc.constantFrom(undefined, 2), (value, indent) => {
      const text = JSON.stringify(value, null, indent);
      assert.equal(blankComments(text), text);
    }),
  );
});

test('what is no JSON stays none', () => {
  for (const text of ['{"a": 1 / 2}', '{"a": 1 /* open', '{,}x', '[1,,2]'])
    assert.throws(() => JSON.parse(blankComments(text)));
});
