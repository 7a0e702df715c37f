/* How the OS lends a CPU. Made by abi/generate.py from abi/flex.toml: do not edit. */
#ifndef FLEX_RUN_H
#define FLEX_RUN_H

#define FLEX_CALL_RUN 0x80 /* the secure OS ran on this CPU, and was told when it had yielded before that its ring of messages is the `pages` pages from the one with number `ring` on; and looked for work after this RUN was made before it answered IDLE; x1 says why it does not run any more, no other register of the OS has changed */
#define FLEX_RUN_INTERRUPTED 1 /* an interrupt of the OS is pending: take it and call again */
#define FLEX_RUN_IDLE 2 /* (ns) nothing can run on this CPU: call again after `ns` nanoseconds (0: no time is known), and whenever something was said to the secure world */
#define FLEX_RUN_ENDED 3 /* (why) the secure world has ended, for a reason of its own; it is answered so on every CPU until the machine is reset */

#endif
