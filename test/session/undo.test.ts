import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { afterAll, afterEach, beforeEach, describe, expect, it } from 'vitest';
import { failed, messageOf } from '../../src/errors.js';
import { silentReporter } from '../../src/report/reporter.js';
import { Journal } from '../../src/session/journal.js';
import { type UndoHandlers, undoAll } from '../../src/session/undo.js';

const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'chunkmount-undo-'));
const file = path.join(directory, 'journal.jsonl');
let journal: Journal;

afterAll(() => fs.rmSync(directory, { recursive: true }));
beforeEach(() => {
  fs.rmSync(file, { force: true });
  journal = new Journal(file);
});
afterEach(() => journal.close());

/** Handlers that note what they undo; those of `broken` fail. */
function handlers(broken: readonly string[] = []): { handlers: UndoHandlers; undone: string[] } {
  const undone: string[] = [];
  const handler = async (entry: { kind: string; seq: number }) => {
    if (broken.includes(entry.kind)) throw failed(`${entry.kind} cannot be undone`);
    undone.push(`${entry.kind} ${entry.seq}`);
  };
  const kinds = ['lock', 'overlay', 'mount', 'serve', 'scratch'];
  return { handlers: Object.fromEntries(kinds.map((kind) => [kind, handler])), undone };
}

function pending(): string[] {
  return journal.pending().map(({ kind }) => kind);
}

const undo = (given: UndoHandlers, barriers: readonly string[] = []) =>
  undoAll({ journal, reporter: silentReporter }, given, new Set(barriers));

describe('undoAll', () => {
  it('undoes everything, newest first, done or not', async () => {
    journal.done(journal.intend('overlay', {}));
    journal.intend('mount', {});
    journal.done(journal.intend('serve', {}));
    const { handlers: all, undone } = handlers();
    expect(await undo(all)).toEqual([]);
    expect(undone).toEqual(['serve 3', 'mount 2', 'overlay 1']);
    expect(pending()).toEqual([]);
  });

  it('hands over what the journal knows', async () => {
    journal.done(journal.intend('overlay', { disk: 'vda' }), { node: 7 });
    const seen: unknown[] = [];
    await undo({
      overlay: async (entry, context) => {
        seen.push(entry);
        expect(context.journal).toBe(journal);
      },
    });
    expect(seen).toEqual([{ seq: 1, kind: 'overlay', data: { disk: 'vda', node: 7 }, done: true }]);
  });

  it('goes on after a failure, and tries only what is left the next time', async () => {
    for (const kind of ['scratch', 'overlay', 'mount']) journal.intend(kind, {});
    const first = handlers(['overlay']);
    expect((await undo(first.handlers)).map(messageOf)).toEqual(['overlay cannot be undone']);
    expect(first.undone).toEqual(['mount 3', 'scratch 1']);
    expect(pending()).toEqual(['overlay']);
    const second = handlers();
    expect(await undo(second.handlers)).toEqual([]);
    expect(second.undone).toEqual(['overlay 2']);
  });

  it('touches nothing below a barrier that stands', async () => {
    for (const kind of ['scratch', 'overlay', 'serve', 'mount']) journal.intend(kind, {});
    const { handlers: all, undone } = handlers(['serve']);
    expect((await undo(all, ['serve'])).map(messageOf)).toEqual(['serve cannot be undone']);
    expect(undone).toEqual(['mount 4']);
    expect(pending()).toEqual(['serve', 'overlay', 'scratch']);
  });

  it('goes on below a barrier that fell', async () => {
    for (const kind of ['overlay', 'serve']) journal.intend(kind, {});
    const { handlers: all, undone } = handlers();
    expect(await undo(all, ['serve'])).toEqual([]);
    expect(undone).toEqual(['serve 2', 'overlay 1']);
  });

  it('leaves alone what is to be spared', async () => {
    for (const kind of ['overlay', 'mount']) journal.intend(kind, {});
    const { handlers: all, undone } = handlers();
    const spare = ({ kind }: { readonly kind: string }) => kind === 'mount';
    expect(await undoAll({ journal, reporter: silentReporter }, all, new Set(), spare)).toEqual([]);
    expect(undone).toEqual(['overlay 1']);
    expect(pending()).toEqual(['mount']);
  });

  it('keeps a step of a kind that it does not know, and says so', async () => {
    journal.intend('hologram', {});
    journal.intend('mount', {});
    const errors = await undo(handlers().handlers);
    expect(errors.map(messageOf)).toEqual(['the journal holds a step of unknown kind "hologram"']);
    expect(pending()).toEqual(['hologram']);
  });

  it('knows no kinds but those of the table', async () => {
    journal.intend('constructor', {});
    journal.intend('__proto__', {});
    const errors = await undo(handlers().handlers);
    expect(errors).toHaveLength(2);
    expect(pending()).toEqual(['__proto__', 'constructor']);
  });

  it('forgets a step only once the record is on disk', async () => {
    journal.intend('mount', {});
    await undo(handlers().handlers);
    const again = new Journal(file);
    expect(again.pending()).toEqual([]);
    again.close();
  });
});
