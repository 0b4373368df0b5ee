"""Which of several processes this one is, by the environment: JAX's own variables, Slurm's or Open MPI's."""

import contextlib
import os
import socket

from aigc_jax.core.errors import UserError, one_line
from aigc_jax.core.star import split_address

START_SECONDS = 600  # within which all processes must begin
_MOST = 2**31 - 1  # processes; JAX counts them in 32 bits


def named() -> tuple[int, int, str]:
    """(number of processes, this one's place, the first one's address). Raises UserError."""
    count, index, address = _found()
    if count > 1:
        _check_devices(os.environ.get('JAX_LOCAL_DEVICE_IDS', ''))
    return count, index, address


def check_free(address: str) -> None:
    """Raises UserError where the first process cannot listen, at `address` or where the environment says: JAX's service
    ends with SIGSEGV then, or shares its port with the service of another run."""
    name = 'JAX_COORDINATOR_BIND_ADDRESS'
    own = os.environ.get(name, '')
    host, port = split_address(_checked(own, name) if own else address)
    if not own:
        name, host, own = 'JAX_COORDINATOR_ADDRESS', '', address
    with contextlib.suppress(OSError), socket.create_connection((host or 'localhost', port), timeout=1) as one:
        if one.getsockname() == one.getpeername():  # nobody listens: the system chose this very port for this end
            raise OSError
        raise UserError(f'{name}: another program listens at {own}; each run needs a port of its own')
    try:
        with socket.socket(socket.AF_INET6 if ':' in host else socket.AF_INET) as one:
            for option in (socket.SO_REUSEPORT, socket.SO_REUSEADDR):  # as JAX's service does
                one.setsockopt(socket.SOL_SOCKET, option, 1)
            one.bind((host, port))
    except OSError as error:
        raise UserError(f'{name}: this process cannot listen at {own}: {error.strerror or error}') from None


def _found() -> tuple[int, int, str]:
    environment = os.environ
    if 'JAX_NUM_PROCESSES' not in environment:
        if 'JAX_PROCESS_ID' in environment:
            raise UserError('JAX_NUM_PROCESSES: missing, though JAX_PROCESS_ID is set; set both, or none')
        if _number('SLURM_NTASKS', 1, 1) == 1 and _number('OMPI_COMM_WORLD_SIZE', 1, 1) == 1:
            return 1, 0, ''
        return _of_cluster()
    count = _number('JAX_NUM_PROCESSES', 1)
    index = _number('JAX_PROCESS_ID', 0, 0 if count == 1 else None)
    _check_index('JAX_PROCESS_ID', index, count)
    if count == 1:
        return 1, 0, ''
    address = environment.get('JAX_COORDINATOR_ADDRESS', '')
    return count, index, _checked(address) if address else _of_cluster()[2]


def _of_cluster() -> tuple[int, int, str]:
    from jax._src.clusters import ClusterEnv

    address = os.environ.get('JAX_COORDINATOR_ADDRESS')
    try:
        found = ClusterEnv.auto_detect_unset_distributed_params(address, None, None, None, None, START_SECONDS)
    except Exception as error:  # of variables that the cluster's manager has not set as JAX expects
        raise UserError(f'the variables of Slurm or Open MPI cannot be read: {one_line(error)}') from None
    address, count, index = found[:3]
    if None in (address, count, index):
        raise UserError(
            'JAX_COORDINATOR_ADDRESS: missing; several processes need JAX_NUM_PROCESSES, JAX_PROCESS_ID and '
            'JAX_COORDINATOR_ADDRESS=HOST:PORT of the first, or to be started by srun or mpirun; one process needs '
            'JAX_NUM_PROCESSES=1'
        )
    _check_index('SLURM_PROCID or OMPI_COMM_WORLD_RANK', index, count)
    return count, index, _checked(address)


def _check_index(name: str, index: int, count: int) -> None:
    if index >= count:
        raise UserError(f'{name}: {index}, but the {count} processes are counted from 0 to {count - 1}')


def _number(name: str, least: int, default: int | None = None) -> int:
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    if text is None:
        raise UserError(f'{name}: missing, though JAX_NUM_PROCESSES is set; set both, or none')
    if not _is_whole(text) or not least <= int(text) <= _MOST:
        raise UserError(f'{name}: {text!r}; it is a whole number from {least} to {_MOST}')
    return int(text)


def _is_whole(text: str) -> bool:
    return text.isascii() and text.strip().isdecimal() and len(text) < 20


def _checked(address: str, name: str = 'JAX_COORDINATOR_ADDRESS') -> str:
    host, colon, port = address.rpartition(':')
    if not host or not _is_whole(port) or not 0 < int(port) < 65536:
        raise UserError(f'{name}: {address!r}; it is HOST:PORT of the first process')
    return address


def _check_devices(ids: str) -> None:
    if ids and not all(map(_is_whole, ids.split(','))):
        raise UserError(f"JAX_LOCAL_DEVICE_IDS: {ids!r}; it is the numbers of this process's devices, as 0,1")
