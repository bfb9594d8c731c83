"""A daemon goes on while connections come and go, with threads that Python did not make."""

from tests.conftest import PoolMaker
from tests.support.inflight import InflightClient, Pump

BLOCK = 64 << 10
ROUNDS = 16


def test_connections_come_write_and_go(new_pool: PoolMaker) -> None:
    """With each goes what the interpreter keeps of its threads, and nothing else."""
    pool = new_pool("64M", start=False)
    pool.start("--threads", "4")
    for name in ("a", "b"):
        pool.create(name, "32M")
    pid = pool.status()["pid"]
    pump = Pump()
    # One stays, and is served before and after each of the others.
    stays = InflightClient(pool.socket, "a")
    errors: list[int] = []
    for number in range(ROUNDS):
        comes = InflightClient(pool.socket, "b")
        pump.clients = [stays, comes]
        for client in (stays, comes):
            # First writes, trims and reads of holes are Python's, by several threads.
            for step in range(6):
                at = (number * 6 + step) * BLOCK
                client.write(at, bytes([number + 1]) * BLOCK, 0, errors.append)
                client.trim(at, BLOCK, 0, errors.append)
                client.read(at, 512, lambda error, _: errors.append(error))
            client.flush(errors.append)
        pump.drain()
        comes.close()
    assert set(errors) == {0}
    assert pool.status()["pid"] == pid
    stays.close()
