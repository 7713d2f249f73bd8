# flake8: noqa

# import apis into api package
from solverd.api.credits_api import CreditsApi
from solverd.api.files_api import FilesApi
from solverd.api.jobs_api import JobsApi
from solverd.api.meta_api import MetaApi
from solverd.api.solvers_api import SolversApi
from solverd.api.studies_api import StudiesApi
from solverd.api.users_api import UsersApi
from solverd.api.wallets_api import WalletsApi

