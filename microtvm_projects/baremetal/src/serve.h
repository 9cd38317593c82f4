/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SERVE_H
#define SERVE_H

/* When there is a pipe questions.pipe, answer its questions (rpc.h) to answers.pipe until it closes. Returns whether
   there was. */
int serve_host(void);

#endif
