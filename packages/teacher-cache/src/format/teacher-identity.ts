import { refuseDescription as refuse, requireWholeNumber as requireCount } from './description-error.ts';
import type { Reader } from './manifest-json.ts';

/** A folder of weights and `config.json`. */
export interface WeightsIdentity {
  readonly kind: 'weights';
  readonly name: string;
  readonly architecture: string;
  readonly weightsSha256: string;
  readonly configSha256: string;
  readonly hiddenSize: number;
  readonly layerCount: number;
  /** Rows of the output matrix, padding included. */
  readonly vocabSize: number;
}

/** A model in one file, such as ONNX or GGUF. */
export interface GraphIdentity {
  readonly kind: 'graph';
  readonly name: string;
  /** Of the file. */
  readonly sha256: string;
  /** Left out where unknown; then there are no hidden states. */
  readonly hiddenSize?: number;
  readonly layerCount?: number;
  /** Logits of a position, padding included. */
  readonly vocabSize: number;
}

/** A model behind an interface that gives labels and nothing of itself. */
export interface ServiceIdentity {
  readonly kind: 'service';
  /** The model's name, whatever the address it is asked at. */
  readonly name: string;
  /** What the service says of the model's version, where it does. */
  readonly fingerprint?: string;
  readonly hiddenSize?: never;
  readonly layerCount?: never;
  /** Ids are below. */
  readonly vocabSize: number;
}

export type TeacherIdentity = WeightsIdentity | GraphIdentity | ServiceIdentity;

/** What tells a teacher's numbers from another's: sha256 of its weights or its file; null where nobody can know. */
export function teacherSha256(teacher: TeacherIdentity): string | null {
  if (teacher.kind === 'weights') return teacher.weightsSha256;
  return teacher.kind === 'graph' ? teacher.sha256 : null;
}

/** @throws StillhouseError CACHE_DESCRIPTION_INVALID */
export function normaliseTeacher(teacher: TeacherIdentity): TeacherIdentity {
  const { kind, name, hiddenSize, layerCount, vocabSize } = teacher;
  for (const [key, value] of Object.entries({ hiddenSize, layerCount, vocabSize }))
    if (value !== undefined) requireCount(`teacher.${key}`, value, 1);
  switch (kind) {
    case 'weights': {
      const { architecture, weightsSha256, configSha256, hiddenSize, layerCount } = teacher;
      return { kind, name, architecture, weightsSha256, configSha256, hiddenSize, layerCount, vocabSize };
    }
    case 'graph':
      return {
        kind,
        name,
        sha256: teacher.sha256,
        ...(hiddenSize === undefined ? {} : { hiddenSize }),
        ...(layerCount === undefined ? {} : { layerCount }),
        vocabSize,
      };
    case 'service': {
      const { fingerprint } = teacher;
      return { kind, name, ...(fingerprint === undefined ? {} : { fingerprint }), vocabSize };
    }
    default:
      return refuse('teacher.kind is unknown', 'weights, graph or service', String(kind satisfies never));
  }
}

/** As a manifest has it: versions up to 3 knew weights only and did not say so, hence their kind is left out. */
export function printTeacher(teacher: TeacherIdentity): object {
  const { kind, ...rest } = teacher;
  return kind === 'weights' ? rest : teacher;
}

/** Values of the right types; `normaliseTeacher` says whether they make sense. */
export function readTeacher(reader: Reader, value: unknown, key: string): TeacherIdentity {
  const root = reader.object(value, key);
  const { kind = 'weights' } = root;
  const text = (name: string) => reader.text(root[name], `${key}.${name}`);
  const count = (name: string) => reader.count(root[name], `${key}.${name}`);
  const optional = <Name extends string, T>(name: Name, read: (name: Name) => T) =>
    (root[name] === undefined ? {} : { [name]: read(name) }) as { readonly [name in Name]?: T };
  switch (kind) {
    case 'weights':
      return {
        kind,
        name: text('name'),
        architecture: text('architecture'),
        weightsSha256: text('weightsSha256'),
        configSha256: text('configSha256'),
        hiddenSize: count('hiddenSize'),
        layerCount: count('layerCount'),
        vocabSize: count('vocabSize'),
      };
    case 'graph':
      return {
        kind,
        name: text('name'),
        sha256: text('sha256'),
        ...optional('hiddenSize', count),
        ...optional('layerCount', count),
        vocabSize: count('vocabSize'),
      };
    case 'service':
      return { kind, name: text('name'), ...optional('fingerprint', text), vocabSize: count('vocabSize') };
    default:
      return reader.fail(`${key}.kind`, 'weights, graph or service', kind);
  }
}
