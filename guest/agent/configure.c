/* What makes a clone itself: fresh randomness first, then clock, host name, network. */
#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"

enum { SEED_MIN = 32, SEED_MAX = 512 };

/* Mixed in and counted as entropy, then RNDRESEEDCRNG, which also makes each cpu throw away what it had drawn in
 * advance (drivers/char/random.c: the generation of base_crng): without it two clones would draw the same numbers. */
static int reseed(const uint8_t *seed, size_t length)
{
	struct {
		int entropy_count, buf_size;
		uint8_t buf[SEED_MAX];
	} pool;
	int fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);

	if (fd < 0)
		return errno;
	pool.entropy_count = (int)(length * 8);
	pool.buf_size = (int)length;
	memcpy(pool.buf, seed, length);
	int error = 0;
	if (ioctl(fd, RNDADDENTROPY, &pool) < 0 || ioctl(fd, RNDRESEEDCRNG) < 0)
		error = errno;
	close(fd);
	explicit_bzero(&pool, sizeof pool);
	return error;
}

static int set_clock(uint64_t nanoseconds)
{
	struct timespec now = { .tv_sec = (time_t)(nanoseconds / 1000000000), .tv_nsec = (long)(nanoseconds % 1000000000) };

	return clock_settime(CLOCK_REALTIME, &now) < 0 ? errno : 0;
}

static int no_card;

static int take(const struct wire_field *field, uint64_t *clock, int *seeded, const char **why)
{
	switch (field->tag) {
	case TAG_SEED:
		*why = "randomness cannot be set";
		if (field->length < SEED_MIN || field->length > SEED_MAX)
			return EINVAL;
		*seeded = 1;
		return reseed(field->bytes, field->length);
	case TAG_CLOCK:
		*clock = field->length == 8 ? wire_u64(field->bytes) : 0;
		return *clock ? 0 : EINVAL;
	case TAG_HOSTNAME:
		*why = "the host name cannot be set";
		if (field->length > 64)
			return EINVAL;
		return sethostname((const char *)field->bytes, field->length) < 0 ? errno : 0;
	case TAG_MAC:
	case TAG_MTU:
	case TAG_ADDRESS:
	case TAG_GATEWAY:
		return 0; /* network.c's */
	case TAG_FLAGS:
		if (field->length != 4)
			return EINVAL;
		no_card = (wire_u32(field->bytes) & FLAG_NO_CARD) != 0;
		rehearsal_begin((wire_u32(field->bytes) & FLAG_REHEARSE) != 0);
		return 0;
	default:
		return EINVAL;
	}
}

int configure(const struct wire_message *frame, const char **why)
{
	no_card = 0;
	struct wire_field field;
	size_t offset = 0;
	uint64_t clock = 0;
	int more, error, seeded = 0;

	while ((more = wire_next(frame->payload, frame->length, &offset, &field)) == 1) {
		*why = "a field is not valid";
		error = take(&field, &clock, &seeded, why);
		if (error)
			return error;
	}
	*why = "a seed and a clock are required";
	if (more || !seeded || !clock)
		return EINVAL;
	*why = "the clock cannot be set";
	error = set_clock(clock);
	if (!error)
		error = network_set(frame, why);
	return error || !no_card ? error : lonely_enter(why);
}
