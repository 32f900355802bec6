import { describeTransport } from '../../contracts/transport.js';

describeTransport({ kind: 'kernel', findsHoles: true, timeUnit: 1n, longInodes: true });
