// For node --import: counts what chunkmount writes to its journal, into CRASH_COUNT, and sends itself CRASH_SIGNAL, else SIGKILL, right
// after record number CRASH_AT is on the disk. Processes that it starts do not inherit it.
import fs from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';

const { CRASH_AT: at, CRASH_COUNT: file, CRASH_SIGNAL: signal = 'SIGKILL' } = process.env;
for (const name of ['CRASH_AT', 'CRASH_COUNT', 'CRASH_SIGNAL', 'NODE_OPTIONS']) delete process.env[name];

let count = 0;
const real = fs.fdatasyncSync;
fs.fdatasyncSync = (fd) => {
  real(fd);
  if (!fs.readlinkSync(`/proc/self/fd/${fd}`).endsWith('/journal.jsonl')) return;
  count++;
  fs.writeFileSync(file, String(count));
  if (count === Number(at)) process.kill(process.pid, signal);
};
syncBuiltinESMExports();
