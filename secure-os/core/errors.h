/* Linux's numbers for what went wrong. */
#ifndef SECURE_OS_ERRORS_H
#define SECURE_OS_ERRORS_H

#define ERROR_PERM (-1)
#define ERROR_NOENT (-2)
#define ERROR_BADF (-9)
#define ERROR_AGAIN (-11)
#define ERROR_NOMEM (-12)
#define ERROR_ACCES (-13)
#define ERROR_FAULT (-14)
#define ERROR_BUSY (-16)
#define ERROR_INVAL (-22)
#define ERROR_NOSYS (-38)
#define ERROR_TIMEDOUT (-110)

#endif
