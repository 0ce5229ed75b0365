/** Tasks: prompt, stop, answer and verdict. No task knows a model beyond its config and its tokenizer. */
export { exactMatch } from './exact-match.ts';
export type { Task, TaskItem, Verdict, WrittenAnswer } from './task.ts';
