// man-page.mjs FILE: writes the manual that is made of the built program's own help.
import * as fs from 'node:fs';
import * as path from 'node:path';
import { toolVersion } from '../../build/backup/version.js';
import { manPage } from '../../build/commands/man-page.js';
import { addVerbs, createProgram } from '../../build/commands/program.js';
import { loadAllVerbs } from '../../build/commands/verbs.js';

const [, , file] = process.argv;
if (file === undefined) throw new Error('usage: man-page.mjs FILE');

const program = createProgram();
addVerbs(program, await loadAllVerbs(), () => {
  throw new Error('no command is run here');
});
// See https://reproducible-builds.org/specs/source-date-epoch/
const epoch = process.env.SOURCE_DATE_EPOCH;
const date = epoch === undefined ? new Date() : new Date(Number(epoch) * 1000);
fs.mkdirSync(path.dirname(file), { recursive: true });
fs.writeFileSync(file, manPage(program, toolVersion(), date.toISOString().slice(0, 10)));
