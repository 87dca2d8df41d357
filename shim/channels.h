/* The channels of one micro-VM's port: standard files of processes, and what waits to be written. */
#ifndef CASEMATE_CHANNELS_H
#define CASEMATE_CHANNELS_H

#include <poll.h>

#include "shim.h"

enum { MAX_CHANNELS = 64 };

/* Bytes on their way to one descriptor; never more than the window that the guest was given. */
struct pipe_out {
	int fd;
	uint8_t bytes[MUX_WINDOW];
	size_t length;
	int ended; /* nothing more comes: closed when this is written */
};

struct channel {
	uint16_t number; /* 0: free */
	int in;          /* -1: closed or at its end */
	int exit_socket;
	int terminal;
	struct pipe_out out, err;
	uint32_t credit;  /* bytes of input that the guest will still take */
	uint32_t unacked; /* bytes of output that the guest has sent and we have not acknowledged */
	int open, has_size;
	uint8_t size[4]; /* of the terminal, kept until the channel is open */
	int exited;
	uint32_t status;
};

/* What waits for the guest's port. */
struct port_queue {
	int fd;
	uint8_t bytes[4 * (MUX_HEADER + MUX_MAX_CONTROL)];
	size_t length;
};

extern struct channel *channels[MAX_CHANNELS];
extern struct port_queue port;

size_t port_free(void);
void port_put(uint8_t type, uint16_t channel, const void *bytes, size_t length);
/* 0, or -1 when the other end is gone. */
int port_write(void);

int channel_open(uint16_t number, const int *fds, int count);
/* A frame of the guest's for a channel; -1 when the guest breaks the rules. */
int channel_frame(const struct mux_frame *frame);
/* Adds what to poll for, and later looks at the results; both walk the channels in the same order. */
size_t channels_poll(struct pollfd *list);
void channels_serve(const struct pollfd *list);
/* The machine is gone: every process ends with `status`. */
void channels_end(uint32_t status);

#endif
