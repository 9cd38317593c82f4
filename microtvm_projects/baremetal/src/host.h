/* SPDX-License-Identifier: Apache-2.0 */
/* Whom the firmware talks to: a debugger (semihosting.c, serve.c) or whoever is at the other end of a serial line (uart/). */
#ifndef HOST_H
#define HOST_H

/* Before the first word to it. */
void host_meet(void);

/* Report and answer its questions. Returns main()'s status; over a serial line, where nobody says that they leave, never. */
int host_serve(void);

void host_leave(int status) __attribute__((noreturn));

/* The program supplies this: print what it has to say. 0 when all of it is right. */
int report(void);

#endif
