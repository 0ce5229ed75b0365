import { isPresent, type JsonObject, requireText } from './fields.ts';
import type { DataRow, RowMetadata } from './row-content.ts';

/** GSM8K's own lines (Cobbe et al. 2021): a question and its worked answer, whose result follows the last `####`. */
export const isGsm8k = ({ question, answer }: JsonObject): boolean => isPresent(question) && isPresent(answer);

/**
 * The question as the user's turn, the worked answer as the assistant's, the result as the row's answer.
 * @throws StillhouseError ROW_TYPE
 */
export function readGsm8k(
  row: JsonObject,
  { answer = '', ...metadata }: RowMetadata,
  where: string,
): Pick<DataRow, 'metadata' | 'content'> {
  const question = requireText(row.question, 'question', where);
  const messages = [
    { role: 'user', content: question },
    { role: 'assistant', content: answer },
  ];
  return {
    metadata: { task: 'math', ...metadata, answer: answer.split('####').at(-1)!.trim() },
    content: { form: 'messages', messages },
  };
}
