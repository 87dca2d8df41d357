/* Further containers in a sandbox of runsc. */
#ifndef CASEMATE_JOIN_H
#define CASEMATE_JOIN_H

/* runsc's words from its program on. Those with a result return it where the container has no waiter, or where
 * runsc is to go on. */
_Noreturn void join_create(const char *sandbox, char **argv);
int join_start(char **argv);
/* Of pause, resume and delete. */
int join_other(char **argv, const char *command);
_Noreturn void rest_main(void);

#endif
