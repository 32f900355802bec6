import { Lock } from '../../build/session/lock.js';

/** Takes a lock, says so, and holds it until stdin ends; with `keep` the lock then stays, with `brief` others wait for it. */
const [, , directory, name, how] = process.argv;
const lock = await Lock.acquire(directory, name, { command: 'holder', brief: how === 'brief' });
process.stdout.write('held\n');
process.stdin.on('data', () => {});
process.stdin.on('end', () => lock.release({ keep: how === 'keep' }));
